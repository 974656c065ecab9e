"""Prompts of general use, which belong to no task of the study on language models.

MEASURED shows what a merge has changed of the base. TEACHING lets the base teach a merge. No prompt
is in both.
"""

MEASURED = """\
What is the capital of Australia?
Explain why the sky is blue.
Write a short poem about autumn.
How do I boil an egg?
Give me three tips for sleeping better.
Translate to French: Where is the station?
What is photosynthesis?
Write a Python function that reverses a string.
Who wrote Romeo and Juliet?
Summarise in one sentence: The meeting was moved to Thursday because two people were ill.
What is the difference between a lake and a river?
Suggest a name for a small bookshop.
How does a bicycle stay upright?
List five countries in Africa.
What should I pack for a week in the mountains?
Correct the grammar: She don't like apples.
Why do we have leap years?
Tell me a joke about computers.
What is 17 plus 25?
Describe the taste of chocolate.
Write an email that asks a colleague for help with a report.
What causes thunder?
How can I learn to play the guitar?
Name two advantages of working from home.
What does the word "ephemeral" mean?
Give a synonym for "happy".
Explain gravity to a child.
What is the largest planet in the solar system?
Write the first sentence of a ghost story.
How much water should a person drink every day?
What is a good gift for a gardener?
Compare cats and dogs as pets.
Convert 10 kilometres to miles.
What is the main idea of democracy?
How do vaccines work?
Rewrite politely: Send me the file now.
What are the ingredients of pancakes?
Why is the sea salty?
Plan a day in London for a family.
What is an algorithm?
Write a SQL query that counts the rows of a table.
Should I learn Python or JavaScript first?
What happens when water freezes?
Give an example of a metaphor.
How do I remove a coffee stain from a shirt?
Who was Marie Curie?
What is the opposite of "generous"?
Explain what inflation is.
How do bees make honey?
Finish the sentence: The old man opened the door and""".splitlines()

TEACHING = """\
What is the capital of Canada?
Explain how a rainbow forms.
Write a short poem about the sea.
How do I make a cup of tea?
Give me three tips for saving money.
Translate to Spanish: The book is on the table.
What is evolution?
Write a Python function that adds two numbers.
Who painted the Mona Lisa?
Summarise in one sentence: The train was late because snow had fallen on the tracks.
What is the difference between a fruit and a vegetable?
Suggest a title for a story about a lost dog.
How does a refrigerator work?
List five animals that live in the desert.
What should I cook for four guests?
Correct the grammar: They was at home yesterday.
Why do leaves change colour?
Tell me a fun fact about the moon.
What is 9 times 8?
Describe a sunset.
Write a thank-you note to a teacher.
What causes earthquakes?
How can I become a better writer?
Name two disadvantages of living in a big city.
What does the word "resilient" mean?
Explain electricity to a child.
What is the longest river in the world?
How many hours should an adult sleep?
What is a healthy breakfast?
How do airplanes fly?
Who was Isaac Newton?
What is machine learning?""".splitlines()
